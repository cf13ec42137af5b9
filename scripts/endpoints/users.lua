-- A small resource with all four verbs: what is stored lives as long as the server.
local korv = require "korv"

local users = {}

local function find(request)
  return users[request.params.name] or korv.abort(404, { message = "no user " .. request.params.name })
end

return function(app)
  app:get("/users", { doc = "Lists the names of all users." }, function()
    local names = korv.array {}
    for name in pairs(users) do names[#names + 1] = name end
    table.sort(names)
    return 200, names
  end)

  app:get("/users/:name", function(request)
    return 200, find(request)
  end)

  app:store("/users/:name", { doc = "Stores a user, new or not; the body is an object." }, function(request)
    if type(request.body) ~= "table" then return 400, { message = "the body must be an object" } end
    local is_new = users[request.params.name] == nil
    users[request.params.name] = request.body
    return is_new and 201 or 200, request.body
  end)

  app:update("/users/:name", { doc = "Changes the fields that the body names." }, function(request)
    local user = find(request)
    for field, value in pairs(request.body) do user[field] = value end
    return 200, user
  end)

  app:delete("/users/:name", function(request)
    find(request)
    users[request.params.name] = nil
    return 204
  end)
end
