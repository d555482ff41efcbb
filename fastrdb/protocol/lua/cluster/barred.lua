-- Does a barrier cover a key?
-- KEYS: barriers
-- ARGV: entry
-- Result: 1 or 0
return barred(KEYS[1], ARGV[1]) and 1 or 0
