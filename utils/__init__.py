"""What a subnet looks like to a predictor, what it costs, and how accurate it is."""
