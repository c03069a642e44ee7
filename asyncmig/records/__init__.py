"""The code that the workflows of all API generations share: the journal record of a customer that is worked on."""
