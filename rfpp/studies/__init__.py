"""What the chapters measure on an experiment: one module for each question, each function a quantity of the field."""
