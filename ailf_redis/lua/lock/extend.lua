-- Let grants of locks end later; one that has ended changes nothing.
--
-- ARGV    for each grant: how many names (their keys follow each other), token, ttl_ms
-- returns for each grant 1, or 0 where it had ended
-- bound   the grants that are named

redis.call('ZREM', KEYS[1], '') -- a first write, of nothing: see relief.lua
local kept = {}
local first = 1
for i = 1, #ARGV, 3 do
  local names, token, ttl = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  local mine = 1
  for each = 0, names - 1 do
    if not ends_of(lock_at(first + each * EACH), token) then mine = 0 end
  end
  for each = 0, mine * names - 1 do grant(lock_at(first + each * EACH), token, now + ttl) end
  kept[#kept + 1] = mine
  first = first + names * EACH
end
return kept
