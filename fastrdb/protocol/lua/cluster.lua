-- Put in front of the scripts for a cluster, behind what all have in front. Each works on one slot: a slot_ script on
-- that of an entry, a shard_ script on that of a shard of the index.

local WHOLE = '\0' -- a member of each index from its beginning: an index without it was lost, and has begun anew

-- The life of the data by which a server is known: nil and the reason where an ACL denies it.
local function history()
  local own, why = life()
  if not own then return nil, why end
  return own
end

-- What a lease holds, and the moment of its grant behind it: its token; its history, since one that has come back with old
-- data is nobody's; a mark, if it is a writer's: who finds that does not wait for it.
local function sealed(token, mark)
  return token .. '\n' .. (history() or '') .. '\n' .. mark -- mechanism: lease-has-history
end

local READS, WRITES = 'r', 'w'

-- Is it of this history, and has this mark?
local function is_sealed(held, mark)
  return held and begins(held, {sealed(token_in(held), mark)})
end

-- Note in its slot's roster that there is this entry or lease; forget what has died since.
local function enlist(roster, name, life_ms)
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', roster, '-inf', ms(now))
  redis.call('ZADD', roster, 'GT', ms(now + life_ms + SLACK_MS), name)
end
