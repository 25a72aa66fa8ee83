"""How contenders are made, found right, timed in turns and put into tables."""
