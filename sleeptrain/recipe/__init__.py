"""The whole recipe: sections composed, rules across sections, completed by data and processes; trained runs opened."""
