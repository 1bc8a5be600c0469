-- What becomes of an entry, in a group, that is removed from the stream; it stands before the texts of those that do it.
--
-- returns nothing by itself
-- writes  the groups' helpers (see group.lua)

-- Who holds it may still settle it. One that waits for its turn is done with. Any other is for the next fetch to find.
local function let_find(stream, group, entry, now, due, bell, notes, queue)
  local id = entry[1]
  local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not row or row[2] ~= 'ailf.waiting' then return end
  local score = redis.call('ZSCORE', due, id)
  if score == 'inf' then
    local key = redis.call('HGET', notes, id .. ':k')
    redis.call('XACK', stream, group, id)
    redis.call('ZREM', due, id)
    redis.call('HDEL', notes, id .. ':f', id .. ':e', id .. ':k', id .. ':m')
    if key then redis.call('ZREM', queue, place(key, id)) end
  elseif score and tonumber(score) > now then
    redis.call('ZADD', due, string.format('%.0f', now), id)
    if type(redis.pcall('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)) ~= 'string' then -- as `ring` in group.lua
      redis.call('DEL', bell)
      redis.call('XADD', bell, '*', 'r', 1)
    end
    redis.call('PEXPIRE', bell, 10000)
  end
end
