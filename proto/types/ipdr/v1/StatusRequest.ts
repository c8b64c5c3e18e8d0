// Original file: proto/ipdr/agent.proto


export interface StatusRequest {
}

export interface StatusRequest__Output {
}
