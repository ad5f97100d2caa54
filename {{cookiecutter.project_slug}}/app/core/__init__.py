"""The plant room: what every request or migration passes through, and few people ever edit."""
