// Names for reports: of kernels by their addresses, of accesses by the line of source that made
// them. binutils' addr2line reads the debug information; it comes with the compiler.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace emulation {
namespace {

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// Not where a kernel's author looks: the emulation itself and the toolkit's headers.
bool is_foreign(const std::string& file) {
  static const std::string here = std::string(__FILE__).substr(0, strlen(__FILE__) - 11);
  const std::string name = base_name(file);
  return name.rfind("cuda_", 0) == 0 || name == "??" ||
         (file.rfind(here, 0) == 0 && name.substr(name.find('.')) != ".cu");
}

// "void f<int>(float*)" -> "f<int>"
std::string without_signature(std::string name) {
  int depth = 0;
  for (size_t i = name.size(); i-- > 0;) {
    depth += name[i] == ')' || name[i] == '>';
    depth -= name[i] == '(' || name[i] == '<';
    if (depth == 0 && name[i] == '(') {
      name.resize(i);
      break;
    }
  }
  return name.rfind("void ", 0) == 0 ? name.substr(5) : name;
}

}  // namespace

const char* file_name(Where where) {
  const char* slash = strrchr(where.file, '/');
  return slash ? slash + 1 : where.file;
}

std::string place(Where where) {
  return where.line ? file_name(where) + (":" + std::to_string(where.line)) : where.file;
}

std::vector<Symbol> symbols_of(const std::vector<const void*>& addresses) {
  std::vector<Symbol> symbols(addresses.size(), Symbol{"a kernel", "?"});
  Dl_info info;
  if (addresses.empty() || !dladdr(reinterpret_cast<const void*>(&symbols_of), &info)) {
    return symbols;
  }
  // -a prints each address before its frames, the innermost of inlined functions first.
  std::string command = std::string("addr2line -a -f -C -i -e '") + info.dli_fname + "'";
  for (const void* address : addresses) {
    char offset[32];
    snprintf(offset, sizeof offset, " 0x%zx",
             size_t(static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase)));
    command += offset;
  }
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (!pipe) return symbols;
  std::vector<std::string> lines;
  for (char buffer[2048]; fgets(buffer, sizeof buffer, pipe);) {
    lines.emplace_back(buffer, strcspn(buffer, "\n"));
  }
  pclose(pipe);
  size_t next = 0;
  for (Symbol& symbol : symbols) {
    bool decided = false;
    if (next < lines.size()) ++next;  // the address
    while (next + 1 < lines.size() && lines[next].rfind("0x", 0) != 0) {
      const std::string file = lines[next + 1].substr(0, lines[next + 1].rfind(':'));
      std::string place = base_name(lines[next + 1]);
      place.resize(std::min(place.find(' '), place.size()));  // "(discriminator 3)"
      if (!decided) symbol = {without_signature(lines[next]), place};
      decided = decided || !is_foreign(file);
      next += 2;
      if (decided) continue;
    }
  }
  return symbols;
}

std::string kernel_name(const void* kernel) { return symbols_of({kernel})[0].function; }

}  // namespace emulation
