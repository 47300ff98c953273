"""What troubleshoot needs: the diagnosis, the statements of a repair, quarantine, salvage."""
