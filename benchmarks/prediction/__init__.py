"""How fast each kernel should be on a card that is not there: from its build, its plan and the data sheet."""
