"""What an operator does to stores: moving an overlay from one to another, and finding out what is wrong."""
