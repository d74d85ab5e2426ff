// Pixels of slices, written one by one and put on the canvas at once: a frame may have a hundred thousand, each of another colour.
// Coordinates are the canvas's own pixels, of which one of the page may have several.
const raster = (() => {
  const sheet = document.createElement("canvas"), paper = sheet.getContext("2d");
  let image = null, pixels = null, top = 0;
  return {
    begin(w, h) {
      if (!image || image.width !== w || image.height !== h) {
        sheet.width = w;
        sheet.height = h;
        image = new ImageData(w, h);
        pixels = new Uint32Array(image.data.buffer);
      } else {
        pixels.fill(0);
      }
      top = 0;
    },
    /** Nothing above is drawn any more. */
    clipTop(y) { top = Math.max(0, Math.round(y)); },
    rect(x, y, w, h, ink) {
      const x0 = Math.max(0, x), x1 = Math.min(image.width, x + w), y1 = Math.min(image.height, y + h);
      if (x1 <= x0) return;
      for (let row = Math.max(top, y); row < y1; row++) pixels.fill(ink, row * image.width + x0, row * image.width + x1);
    },
    /** One pixel wide. */
    column(x, y, h, ink) {
      const y1 = Math.min(image.height, y + h);
      for (let row = Math.max(top, y), p = row * image.width + x; row < y1; row++, p += image.width) pixels[p] = ink;
    },
    end(g) {
      paper.putImageData(image, 0, 0);
      g.save();
      g.resetTransform();
      g.drawImage(sheet, 0, 0);
      g.restore();
    },
  };
})();

/** As ImageData has it: red in the lowest byte. */
const pack = (r, g, b, alpha) => ((Math.round(alpha * 255) << 24) | (b << 16) | (g << 8) | r) >>> 0;
const withAlpha = (ink, alpha) => ((ink & 0xffffff) | (Math.round((ink >>> 24) * alpha) << 24)) >>> 0;
function packCss(hex) {
  const n = parseInt(hex.slice(1), 16);
  return pack(n >> 16, (n >> 8) & 255, n & 255, 1);
}
function packHsl([hue, saturation, light], alpha) {
  const s = saturation / 100, l = light / 100, chroma = s * Math.min(l, 1 - l);
  const part = (n) => { const k = (n + hue / 30) % 12; return Math.round(255 * (l - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return pack(part(0), part(8), part(4), alpha);
}
