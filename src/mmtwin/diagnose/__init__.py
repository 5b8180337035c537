"""What recordings and kernel logs say: who asked for memory, who wastes it, who keeps it, why a request failed."""
