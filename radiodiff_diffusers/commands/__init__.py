"""The commands of `radiodiff`, a module each; `cli` imports the one that is asked for."""
