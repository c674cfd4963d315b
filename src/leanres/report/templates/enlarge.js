// A click on an image, or Enter, shows it large with its alternative text below it.
{
  const dialog = document.createElement("dialog"), caption = document.createElement("p");
  const close = document.createElement("button");
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  dialog.className = "large";
  dialog.addEventListener("click", event => event.target === dialog && dialog.close());
  document.body.append(dialog);
  for (const image of document.querySelectorAll("img.enlarges")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.title = "Show it large";
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      // Whole multiples of the pixels that the network saw.
      const factor = Math.max(1, Math.floor(Math.min(480, innerWidth - 80) / image.naturalWidth));
      const large = image.cloneNode();
      large.width = factor * image.naturalWidth;
      large.height = factor * image.naturalHeight;
      caption.textContent = image.alt;
      dialog.replaceChildren(large, caption, close);
      dialog.showModal();
    });
  }
}
