"""The journal record of one customer while a process works on it: what every API generation's workflow shares."""
