"""From a supernet to an accuracy predictor: gather pairs, fit, report."""
