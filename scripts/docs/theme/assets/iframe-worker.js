// Browsers start no worker from a file:// page. There, the search runs in a hidden frame instead, with the same interface.
if (location.protocol === "file:") {
  const load = (page, url) =>
    new Promise((done, failed) => {
      const script = page.createElement("script")
      script.src = url
      script.async = false
      script.onload = done
      script.onerror = () => failed(new Error(`${url} could not be loaded`))
      page.body.append(script)
    })

  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const room = this.frame.contentWindow
      room.postMessage = data => {
        const event = new MessageEvent("message", {data})
        this.onmessage?.(event)
        this.dispatchEvent(event)
      }
      room.importScripts = (...urls) => Promise.all(urls.map(each => load(room.document, each)))
      this.ready = load(room.document, url)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})), console.error)
    }

    terminate() {
      this.frame.remove()
    }
  }
}
