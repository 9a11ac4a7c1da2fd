"""The fine-tuning command for anybody's language model and data: commonsense_reasoning.finetune, generate and merge."""
