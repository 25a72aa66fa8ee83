"""An adapted model on the disk, and in other tools' formats."""
