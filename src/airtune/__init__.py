"""airtune: fine-tuning of language models over wireless fleets of unequal devices."""
