"""Images and text into arrays: what a LLaVA checkpoint expects, without torch."""
