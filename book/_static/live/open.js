/* Starts the parts that the page has. Without this, or when something fails, their still pictures stay. */
"use strict";

for (const name of ["digits", "plane"]) {
  const section = document.getElementById(`live-${name}`);
  if (!section) continue;
  try {
    rfpp[name].open(section);
  } catch (error) { // such as weights that were cut off
    section.hidden = true;
    const note = document.getElementById(`live-${name}-wrong`);
    if (note) note.hidden = false;
  }
}
