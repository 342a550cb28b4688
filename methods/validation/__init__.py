"""Whether what is predicted or measured directly holds after finetuning."""
