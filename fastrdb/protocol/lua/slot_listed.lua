-- Read the list of all entries and leases of a slot, a part at a time, in the order of their deaths: one that is put into
-- it again, to live longer, is read again.
-- KEYS: roster
-- ARGV: from where, as ZRANGEBYSCORE has it; how many at least, if there are as many
-- Result: {from where to go on ('' at the end), names}
local roster, from, count = KEYS[1], ARGV[1], tonumber(ARGV[2])
local death = redis.call('ZRANGEBYSCORE', roster, from, '+inf', 'WITHSCORES', 'LIMIT', count - 1, 1)[2]
return {death and '(' .. death or '', redis.call('ZRANGEBYSCORE', roster, from, death or '+inf')}
