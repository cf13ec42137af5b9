--- What the specs of modules and generations share, on top of spec.pair: folders of scripts on disk, and loads of them.
-- @module spec.scripts

local generation = require "korv.generation"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local scripts = {}

local folders = 0

--- Writes files into a folder of their own.
-- @tparam table files names to texts; a name may have one folder in it
-- @treturn string the folder's path
function scripts.folder(files)
  folders = folders + 1
  local name = "scripts" .. folders
  assert(uv.fs_mkdir(support.path(name), 448))
  for file, text in pairs(files) do
    local inner = file:match "^(.*)/"
    if inner then uv.fs_mkdir(support.path(name .. "/" .. inner), 448) end
    support.write(name .. "/" .. file, text)
  end
  return support.path(name)
end

--- Loads files and folders, and waits for it.
-- @tparam string|{string,...} paths
-- @tparam[opt] table options of generation.load
-- @return what the load said
function scripts.load(paths, options)
  local results
  generation.load(type(paths) == "table" and paths or { paths }, options or {}, function(...) results = table.pack(...) end)
  pair.wait_for(function() return results end)
  return table.unpack(results, 1, results.n)
end

--- Loads a script `app.lua` of this text, with these files beside it.
-- @treturn string its path
-- @return what the load said
function scripts.load_text(text, files, options)
  files = files or {}
  files["app.lua"] = text
  local path = scripts.folder(files) .. "/app.lua"
  return path, scripts.load(path, options)
end

--- What a generation answers to GET of a resource.
function scripts.get(made, resource)
  return made.app:handler()({ verb = "GET", resource = resource })
end

--- A script that registers GET /x, which runs a text.
function scripts.endpoint(text, before)
  return (before or "") .. "\nreturn function(app) app:get('/x', function() " .. text .. " end) end\n"
end

return scripts
