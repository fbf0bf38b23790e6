-- Puts off the deadlines of open holds; one that is not here (this server lost it) is held again.
-- ask: holds [[id, node, key, user, at, granted, request]]; lease (µs), or deadline (µs; -1: now + lease)

local stop = refused(false)
if stop then return stop end
open_tenant()
reap()

local deadline = ask.deadline
if deadline < 0 then deadline = now + ask.lease end
local released = {}
for index = 1, #ask.holds do
  local id, node, key, user, at, granted, request = unpack(ask.holds[index])
  local found = redis.call('HGET', ROOT .. 'h', id)
  if not found then
    open_hold(id, { node, key, user, at, granted, request }, deadline)
  elseif found == RELEASED then
    released[#released + 1] = id
  else
    if node == '' then
      -- From now on it outlives the node that made it.
      local hold = cmsgpack.unpack(found)
      hold[1] = ''
      redis.call('HSET', ROOT .. 'h', id, cmsgpack.pack(hold))
    end
    redis.call('ZADD', ROOT .. 'd', deadline, id)
  end
end
save_subjects()
return answer({ status = 'done', now = now, released = released })
