"""Plans: memory, time and communication of a step on devices that need not exist here."""
