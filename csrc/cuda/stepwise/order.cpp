#include "order.h"

#include <algorithm>
#include <numeric>

namespace fusedrnn::cuda {

GateOrder::GateOrder(const Facts& facts) {
  int products = 0;
  for (int i = 0; i < facts.stages; ++i) {
    const StageFacts& stage = facts.stage[i];
    first_product[i] = products;
    int slots[kMostGates];
    std::iota(slots, slots + stage.products, 0);
    std::sort(slots, slots + stage.products,
              [&](int a, int b) { return stage.gate_of_product[a] < stage.gate_of_product[b]; });
    for (int place = 0; place < stage.products; ++place, ++products) {
      const int slot = slots[place];
      place_of_product[i][slot] = static_cast<signed char>(place);
      gate_of_product[products] = stage.gate_of_product[slot];
      as_weights = as_weights && gate_of_product[products] == products;
      column_of_gradient[stage.first_product + slot] = static_cast<signed char>(products);
    }
  }
  // The slot of each input's gradient, by its gate; late ones follow the products' as gates do.
  int gradient_of_input[kMostGates] = {};
  bool is_late[kMostGates] = {};
  for (int i = 0; i < facts.stages; ++i) {
    const StageFacts& stage = facts.stage[i];
    for (int slot = 0; slot < stage.inputs; ++slot) {
      const int gate = stage.gate_of_input[slot], late = slot - stage.first_late;
      gradient_of_input[gate] = facts.first_input_grad + stage.first_input + slot;
      is_late[gate] = late >= 0 && late < stage.late;
    }
  }
  int columns = products;
  for (int gate = 0; gate < facts.inputs; ++gate) {
    signed char& column = column_of_gradient[gradient_of_input[gate]];
    if (is_late[gate]) column = static_cast<signed char>(columns++);
    column_of_input[gate] = column;
  }
  for (int slot = facts.first_unit_grad; slot < facts.grads; ++slot)
    column_of_gradient[slot] = static_cast<signed char>(slot);
}

}  // namespace fusedrnn::cuda
