-- How a group is reset, in steps; loaded before the transitions that begin or continue a reset.
--
-- returns nothing by itself
-- writes  the helper keys of the group (see group.lua)
-- bound   STALE_PAGES * STALE_PAGE pending entries, PAGE redriven ones

-- Return `reset_group`, `continue_reset` and `drop_stale`, which are made where a script needs them (see release.lua).
local function make_reset()
  -- After a reset of the group make a page of the redriven members due, each with attempt 1. Return whether none is
  -- left.
  local function take_up_redriven(from)
    local rows = redis.pcall('XPENDING', again, 'g', from, '+', PAGE)
    if rows.err then rows = redis.pcall('XPENDING', again, 'g', '-', '+', PAGE) end -- the cursor may be no id
    if rows.err then rows = {} end
    for _, row in ipairs(rows) do
      local member = '~' .. row[1]
      local fields = fields_of(member)
      local options = fields and options_of(fields, first_field(member, fields))
      redis.call('HSET', notes, member .. ':f', row[4])
      redis.call('XCLAIM', again, 'g', WAITING, 0, row[1], 'JUSTID')
      local key = options and options.key
      local later = key and get_lanes().look(key) or {}
      admit_redriven(member, options)
      -- One that was redriven since the reset began is in the lane already: it is behind this one now.
      if later[1] and before(row[1], string.sub(later[#later][1], 2)) then
        for _, each in ipairs(later) do redis.call('ZADD', due, 'inf', each[1]) end
        fill_lane(key)
      end
    end
    local rest = #rows == PAGE and after(rows[PAGE][1])
    if rest then
      redis.call('HSET', notes, 'anew', rest)
    else
      redis.call('HDEL', notes, 'anew')
    end
    must_notify = true
    return not rest
  end

  local STALE_PAGE, STALE_PAGES = 500, 2

  -- Acknowledge pages of what was pending before a reset of the group. Return whether none is left. Meanwhile a fetch
  -- leases nothing, so all that is pending is from before.
  local function drop_stale()
    for _ = 1, STALE_PAGES do
      local rows, ids = redis.call('XPENDING', stream, group, '-', '+', STALE_PAGE), {}
      for at, row in ipairs(rows) do ids[at] = row[1] end
      if #ids > 0 then redis.call('XACK', stream, group, unpack(ids)) end
      if #ids < STALE_PAGE then
        redis.call('HDEL', notes, 'stale')
        stale = false
        return true
      end
    end
    return false
  end

  -- Do the next step of a reset. Return whether nothing is left.
  local function continue_reset()
    if stale then return drop_stale() and not anew end
    return take_up_redriven(anew)
  end

  -- Reset the group: nothing is pending but what was redriven, and no older receipt is valid. `base` grows by more than
  -- any delivery count: an entry is delivered less often than microseconds pass, or than 4096 times if the clock was set
  -- back. Return whether the reset is done; if not, the next step continues it.
  local function reset_group()
    redis.call('UNLINK', due, queue, parked, notes)
    has_lanes, lanes = false, nil
    base = now_us > base and now_us or base + 4096
    redis.call('HSET', notes, 'base', number(base))
    if paused then redis.call('HSET', notes, 'paused', paused) end
    if watch then redis.call('HSET', notes, 'watch', watch) end -- else nobody would wake those that sleep
    if concurrency then redis.call('HSET', notes, 'concurrency', concurrency) end
    local redriven = redis.call('EXISTS', again) == 1
    if redriven then redis.call('HSET', notes, 'anew', '-') end
    stale = not missing and #probe > 0
    if stale then redis.call('HSET', notes, 'stale', 1) end
    must_notify = true
    return not (stale and not drop_stale()) and (not redriven or take_up_redriven('-'))
  end

  return reset_group, continue_reset, drop_stale
end
