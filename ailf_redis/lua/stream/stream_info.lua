-- Read the state of a stream; nothing is changed.
--
-- KEYS[1] stream
-- returns { entries, id of the first entry or '', id of the last one or '', number of groups }
-- writes  nothing

local length = redis.call('XLEN', KEYS[1])
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  if not string.find(tostring(groups.err), 'no such key', 1, true) then return groups end -- tostring: for fakeredis
  return { 0, '', '', 0 }
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return { length, first and first[1] or '', last and last[1] or '', #groups }
