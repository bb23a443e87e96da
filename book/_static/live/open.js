/* Starts the parts that the page has. Without this, or when something fails, their still pictures stay. */
"use strict";

for (const name of ["digits", "plane"]) {
  const section = document.getElementById(`live-${name}`);
  if (section) rfpp[name].open(section);
}
