"""Speed, as ratios within one run: these figures drift with the machine, their quotients do not."""
