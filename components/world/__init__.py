"""The procedural world: scenes, their renderer, their captions, an oracle that judges images, and the tiny family."""
