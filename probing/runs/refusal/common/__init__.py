"""What the jobs of ``probing refusal`` share."""
