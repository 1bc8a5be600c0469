-- Extend grants of locks; one that has ended is not changed.
--
-- ARGV    for each grant: its number of names (their keys follow one another), token, ttl_ms
-- returns for each grant 1, or 0 if it has ended
-- bound   the named grants

redis.call('ZREM', KEYS[1], '') -- a first write that changes nothing: see relief.lua
local reply = {}
local first = 1
for i = 1, #ARGV, 3 do
  local names, token, ttl = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  local held = 1
  for n = 0, names - 1 do
    if not ends_of(lock_at(first + n * EACH), token) then held = 0 end
  end
  for n = 0, held * names - 1 do grant(lock_at(first + n * EACH), token, now + ttl) end
  reply[#reply + 1] = held
  first = first + names * EACH
end
return reply
