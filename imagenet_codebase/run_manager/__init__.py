"""Training runs that can be stopped and resumed, validation, and measuring an experiment."""
