"""How much privacy costs a detector: methods, data sets and levels of epsilon side by side."""
