"""What a layer costs on the BitFusion accelerator: the model, and the tables it writes."""
