-- Put in front of the scripts for a cluster, behind tags.lua. Each script works on one slot: that of an entry, its
-- lease and its roster, or that of one shard of index, expiry, barriers and trusted ids.

-- The keys of tags, which stand in KEYS from `at` on; nil without these keys.
local function tag_keys(at)
  local tags, tagged, ended, columns = unpack(KEYS, at)
  return tags and {tags = tags, tagged = tagged, ended = ended, columns = columns}
end

-- Note an entry or a lease in the roster of its slot, and forget what has died since.
local function enlist(roster, name, life_ms)
  local now = now_ms()
  forget_before(roster, now, 10)
  redis.call('ZADD', roster, 'GT', ms(now + life_ms + SLACK_MS), name)
end
