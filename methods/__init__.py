"""How a subnet is found: search methods, and the pipeline that makes the accuracy predictor."""
