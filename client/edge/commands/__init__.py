"""The device's commands, a module each; they import what is heavy only when they run."""
