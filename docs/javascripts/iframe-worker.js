// Search in pages that are opened from the disk (mkdocs.yml: the plugin `offline`).
//
// The theme searches in a Worker, and browsers start none for a page of file://. There a hidden
// frame runs the Worker's script. What that script posts goes to the function `receive` of its
// frame; what the page posts waits until the script is there, which the first message says.
// `importScripts` is missing: the theme calls it for languages other than English.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.ready = new Promise((started) => {
        this.frame.receive = (data) => {
          if (data === "started") started();
          else this.dispatchEvent(new MessageEvent("message", { data }));
        };
      });
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow.document;
      inside.open();
      inside.write(
        "<script>postMessage = (data) => frameElement.receive(data)</script>",
        `<script src="${url}"></script>`,
        '<script>postMessage("started")</script>',
      );
      inside.close();
    }

    postMessage(data) {
      // Not by the frame's `postMessage`, which is its script's way out.
      const message = new MessageEvent("message", { data });
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(message));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
