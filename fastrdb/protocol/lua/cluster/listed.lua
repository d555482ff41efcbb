-- Read the roster of a slot in portions, in the order of the deaths: an entry that is listed again, to live longer, is
-- read again.
-- KEYS: roster
-- ARGV: where to start, as ZRANGEBYSCORE has it; how many names at least, if there are as many
-- Result: {where to go on ('' at the end), names}
local roster, from, count = KEYS[1], ARGV[1], tonumber(ARGV[2])
local death = redis.call('ZRANGEBYSCORE', roster, from, '+inf', 'WITHSCORES', 'LIMIT', count - 1, 1)[2]
return {death and '(' .. death or '', redis.call('ZRANGEBYSCORE', roster, from, death or '+inf')}
