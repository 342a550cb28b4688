"""Images and training: `data_providers` opens data sets, `run_manager` trains on them."""
