// The search of a site that is opened from a disk: browsers start no Worker there, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.body.appendChild(document.createElement("iframe"))
      frame.hidden = true
      const inside = frame.contentWindow
      const told = (to, data) => to.dispatchEvent(new MessageEvent("message", { data }))
      inside.postMessage = data => setTimeout(() => told(this, data))
      const load = source =>
        new Promise((resolve, reject) => {
          const script = frame.contentDocument.createElement("script")
          Object.assign(script, { src: new URL(source, location), onload: resolve, onerror: reject })
          frame.contentDocument.head.appendChild(script)
        })
      inside.importScripts = (...sources) => sources.reduce((last, source) => last.then(() => load(source)), Promise.resolve())
      const ready = load(url)
      this.postMessage = data => ready.then(() => told(inside, data))
      this.terminate = () => frame.remove()
    }
  }
}
