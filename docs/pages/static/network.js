"use strict";
// Shows the picture of the chosen network.

live($("controls"), () => {
  for (const section of document.querySelectorAll("section.network")) section.hidden = section.id !== $("name").value;
});
