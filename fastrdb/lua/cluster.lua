-- Put in front of the scripts for a cluster, behind what all have in front. Each works on one slot: a slot_ script on
-- that of an entry, a shard_ script on that of a shard of the index.

-- A history of the data begins when a server starts, or takes over from another: what it has may be older
-- than what the other had. nil and the reason where an ACL denies it.
local function history()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return nil, info.err or 'INFO' end
  return string.match(info, 'master_replid:(%w+)'), 'no master_replid'
end

-- A lease holds its token and its history: one that has come back with old data is nobody's.
local function sealed(token)
  return token .. '\n' .. (history() or '')
end

-- The token of a lease, whatever its history.
local function token_in(held)
  return held and string.match(held, '^[^\n]*')
end

-- Note in its slot's roster that there is this entry or lease; forget what has died since.
local function enlist(roster, name, life_ms)
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', roster, '-inf', ms(now))
  redis.call('ZADD', roster, 'GT', ms(now + life_ms + SLACK_MS), name)
end

-- Lists that a script is given in ARGV, each as its length and its items: next() gives the places of the first and the
-- last item of the next list.
local function lists(at)
  return function()
    local first, count = at + 1, tonumber(ARGV[at])
    at = first + count
    return first, at - 1
  end
end
