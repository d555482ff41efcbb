-- Remove barriers.
-- KEYS: barriers
-- ARGV: the barriers
-- Result: 1 if all of them stood until now, else 0
return remove_barriers(KEYS[1], 1, #ARGV) and 1 or 0
